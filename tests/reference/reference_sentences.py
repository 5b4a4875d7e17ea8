"""Questions and answers in the twelve XQuAD languages, written for this project.

Four themes, each as one question and one passage a language: why the sea has tides, how to brew green tea, when the
town library is open, how to mend a bicycle tyre. `SENTENCES[language][theme] = (question, passage)`.
"""

from __future__ import annotations

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
THEMES = ("tides", "tea", "library", "tyre")

SENTENCES: dict[str, dict[str, tuple[str, str]]] = {
    "en": {
        "tides": (
            "Why does the sea rise and fall twice a day?",
            "The Moon pulls on the oceans, so the water bulges on the side that faces it and on the far side. "
            "As the Earth turns, most coasts pass both bulges and see two high tides a day.",
        ),
        "tea": (
            "How long should green tea steep?",
            "Green tea turns bitter in boiling water. Let the water cool to 75 °C and take the leaves out after "
            "two minutes.",
        ),
        "library": (
            "Is the library open on Sunday?",
            "The town library is open from Monday to Friday between 9:00 and 18:30; on Saturday it closes at noon, "
            "and on Sunday it stays shut.",
        ),
        "tyre": (
            "What do I need to mend a flat bicycle tyre?",
            "Take off the wheel, lever the tyre over the rim and look for the hole in the inner tube under water. "
            "Roughen the spot, put on glue, wait three minutes and press the patch down.",
        ),
    },
    "de": {
        "tides": (
            "Warum steigt und fällt das Meer zweimal am Tag?",
            "Der Mond zieht an den Ozeanen, deshalb wölbt sich das Wasser auf der ihm zugewandten und auf der "
            "abgewandten Seite. Während sich die Erde dreht, kommen die meisten Küsten an beiden Wölbungen vorbei.",
        ),
        "tea": (
            "Wie lange soll grüner Tee ziehen?",
            "Grüner Tee wird in kochendem Wasser bitter. Man lässt das Wasser auf 75 °C abkühlen und nimmt die "
            "Blätter nach zwei Minuten heraus.",
        ),
        "library": (
            "Hat die Bücherei am Sonntag geöffnet?",
            "Die Stadtbücherei öffnet montags bis freitags von 9:00 bis 18:30 Uhr, samstags schließt sie mittags, "
            "und sonntags bleibt sie zu.",
        ),
        "tyre": (
            "Was brauche ich, um einen platten Fahrradreifen zu flicken?",
            "Das Rad ausbauen, den Mantel über die Felge hebeln und das Loch im Schlauch unter Wasser suchen. Die "
            "Stelle anrauen, Kleber auftragen, drei Minuten warten und den Flicken fest andrücken.",
        ),
    },
    "es": {
        "tides": (
            "¿Por qué sube y baja el mar dos veces al día?",
            "La Luna atrae los océanos, y el agua se abomba en el lado que la mira y en el lado opuesto. Mientras "
            "la Tierra gira, casi todas las costas pasan por ambos abombamientos.",
        ),
        "tea": (
            "¿Cuánto tiempo hay que dejar reposar el té verde?",
            "El té verde amarga con agua hirviendo. Deje enfriar el agua hasta 75 °C y retire las hojas a los dos "
            "minutos.",
        ),
        "library": (
            "¿Abre la biblioteca los domingos?",
            "La biblioteca municipal abre de lunes a viernes de 9:00 a 18:30; el sábado cierra a mediodía y el "
            "domingo no abre.",
        ),
        "tyre": (
            "¿Qué necesito para arreglar un pinchazo de bicicleta?",
            "Quite la rueda, saque la cubierta de la llanta y busque el agujero de la cámara bajo el agua. Lije la "
            "zona, ponga pegamento, espere tres minutos y apriete el parche.",
        ),
    },
    "ro": {
        "tides": (
            "De ce urcă și coboară marea de două ori pe zi?",
            "Luna atrage oceanele, iar apa se umflă pe partea dinspre ea și pe partea opusă. Pe măsură ce Pământul "
            "se rotește, cele mai multe țărmuri trec prin amândouă umflăturile.",
        ),
        "tea": (
            "Cât timp trebuie lăsat ceaiul verde la infuzat?",
            "Ceaiul verde devine amar în apă clocotită. Lăsați apa să se răcească până la 75 °C și scoateți "
            "frunzele după două minute.",
        ),
        "library": (
            "Este deschisă biblioteca duminica?",
            "Biblioteca orașului este deschisă de luni până vineri între 9:00 și 18:30; sâmbăta se închide la "
            "prânz, iar duminica rămâne închisă.",
        ),
        "tyre": (
            "De ce am nevoie ca să repar o pană la bicicletă?",
            "Scoateți roata, desprindeți anvelopa de pe jantă și căutați gaura camerei sub apă. Șlefuiți locul, "
            "puneți adeziv, așteptați trei minute și apăsați petecul.",
        ),
    },
    "ru": {
        "tides": (
            "Почему море поднимается и опускается дважды в день?",
            "Луна притягивает океаны, и вода вздувается на обращённой к ней стороне и на противоположной. Пока "
            "Земля вращается, большинство берегов проходит через оба вздутия.",
        ),
        "tea": (
            "Сколько времени заваривать зелёный чай?",
            "В кипятке зелёный чай становится горьким. Дайте воде остыть до 75 °C и выньте листья через две "
            "минуты.",
        ),
        "library": (
            "Открыта ли библиотека в воскресенье?",
            "Городская библиотека работает с понедельника по пятницу с 9:00 до 18:30; в субботу она закрывается в "
            "полдень, а в воскресенье не работает.",
        ),
        "tyre": (
            "Что нужно, чтобы починить проколотую шину велосипеда?",
            "Снимите колесо, сдвиньте покрышку с обода и найдите дырку в камере под водой. Зачистите место, нанесите "
            "клей, подождите три минуты и прижмите заплатку.",
        ),
    },
    "el": {
        "tides": (
            "Γιατί η θάλασσα ανεβαίνει και κατεβαίνει δύο φορές τη μέρα;",
            "Η Σελήνη έλκει τους ωκεανούς και το νερό φουσκώνει στην πλευρά που τη βλέπει και στην απέναντι. Καθώς "
            "η Γη γυρίζει, οι περισσότερες ακτές περνούν και από τα δύο φουσκώματα.",
        ),
        "tea": (
            "Πόση ώρα πρέπει να μείνει το πράσινο τσάι στο νερό;",
            "Το πράσινο τσάι πικρίζει στο βραστό νερό. Αφήστε το νερό να κρυώσει στους 75 °C και βγάλτε τα φύλλα "
            "μετά από δύο λεπτά.",
        ),
        "library": (
            "Είναι ανοιχτή η βιβλιοθήκη την Κυριακή;",
            "Η δημοτική βιβλιοθήκη ανοίγει από Δευτέρα έως Παρασκευή, 9:00 με 18:30· το Σάββατο κλείνει το μεσημέρι "
            "και την Κυριακή μένει κλειστή.",
        ),
        "tyre": (
            "Τι χρειάζομαι για να φτιάξω ένα σκασμένο λάστιχο ποδηλάτου;",
            "Βγάλτε τη ρόδα, περάστε το λάστιχο πάνω από τη ζάντα και βρείτε την τρύπα της σαμπρέλας μέσα σε νερό. "
            "Τρίψτε το σημείο, βάλτε κόλλα, περιμένετε τρία λεπτά και πιέστε το μπάλωμα.",
        ),
    },
    "tr": {
        "tides": (
            "Deniz neden günde iki kez yükselip alçalır?",
            "Ay okyanusları çeker; su hem Ay'a bakan yüzde hem de karşı yüzde kabarır. Dünya dönerken kıyıların çoğu "
            "her iki kabarıklıktan da geçer.",
        ),
        "tea": (
            "Yeşil çay ne kadar demlenmeli?",
            "Yeşil çay kaynar suda acılaşır. Suyu 75 °C'ye kadar soğutun ve yaprakları iki dakika sonra çıkarın.",
        ),
        "library": (
            "Kütüphane pazar günü açık mı?",
            "Şehir kütüphanesi pazartesiden cumaya 9.00 ile 18.30 arasında açıktır; cumartesi öğlen kapanır, pazar "
            "günü hiç açılmaz.",
        ),
        "tyre": (
            "Patlak bir bisiklet lastiğini onarmak için ne gerekir?",
            "Tekerleği sökün, lastiği jantın üzerinden çıkarın ve iç lastikteki deliği suda arayın. Yeri zımparalayın, "
            "yapıştırıcı sürün, üç dakika bekleyin ve yamayı bastırın.",
        ),
    },
    "vi": {
        "tides": (
            "Vì sao nước biển lên xuống hai lần mỗi ngày?",
            "Mặt Trăng hút các đại dương, nên nước phồng lên ở phía hướng về nó và ở phía đối diện. Khi Trái Đất "
            "quay, phần lớn bờ biển đi qua cả hai chỗ phồng.",
        ),
        "tea": (
            "Nên ủ trà xanh trong bao lâu?",
            "Trà xanh bị đắng trong nước sôi. Hãy để nước nguội còn 75 °C và vớt lá trà ra sau hai phút.",
        ),
        "library": (
            "Thư viện có mở cửa vào Chủ nhật không?",
            "Thư viện thành phố mở cửa từ thứ Hai đến thứ Sáu, 9:00 đến 18:30; thứ Bảy đóng cửa lúc trưa, còn Chủ "
            "nhật thì nghỉ.",
        ),
        "tyre": (
            "Cần những gì để vá lốp xe đạp bị thủng?",
            "Tháo bánh xe, nạy lốp ra khỏi vành và tìm lỗ thủng của săm trong nước. Chà nhám chỗ đó, bôi keo, chờ ba "
            "phút rồi ép miếng vá xuống.",
        ),
    },
    "ar": {
        "tides": (
            "لماذا يرتفع البحر وينخفض مرتين في اليوم؟",
            "يجذب القمر المحيطات فينتفخ الماء في الجهة المقابلة له وفي الجهة البعيدة عنه. وبينما تدور الأرض تمر "
            "معظم السواحل بالانتفاخين كليهما.",
        ),
        "tea": (
            "كم دقيقة يُنقع الشاي الأخضر؟",
            "يصبح الشاي الأخضر مُرًّا في الماء المغلي. اترك الماء حتى يبرد إلى 75 درجة وأخرج الأوراق بعد دقيقتين.",
        ),
        "library": (
            "هل المكتبة مفتوحة يوم الأحد؟",
            "تفتح مكتبة المدينة من الاثنين إلى الجمعة بين ٩:٠٠ و١٨:٣٠، وتغلق ظهرًا يوم السبت، ولا تفتح يوم الأحد.",
        ),
        "tyre": (
            "ماذا أحتاج لإصلاح إطار دراجة مثقوب؟",
            "انزع العجلة وأخرج الإطار من الطوق وابحث عن الثقب في الأنبوب تحت الماء. خشّن المكان وضع الغراء وانتظر "
            "ثلاث دقائق ثم اضغط الرقعة.",
        ),
    },
    "hi": {
        "tides": (
            "समुद्र दिन में दो बार क्यों चढ़ता और उतरता है?",
            "चंद्रमा महासागरों को खींचता है, इसलिए पानी उसकी ओर वाली तरफ़ और दूसरी तरफ़ उभर आता है। पृथ्वी के घूमने पर अधिकांश "
            "तट दोनों उभारों से गुज़रते हैं।",
        ),
        "tea": (
            "ग्रीन टी को कितनी देर भिगोना चाहिए?",
            "उबलते पानी में ग्रीन टी कड़वी हो जाती है। पानी को 75 °C तक ठंडा होने दें और दो मिनट बाद पत्तियाँ निकाल लें।",
        ),
        "library": (
            "क्या पुस्तकालय रविवार को खुला रहता है?",
            "नगर पुस्तकालय सोमवार से शुक्रवार ९:०० से १८:३० तक खुला रहता है; शनिवार को दोपहर में बंद होता है "
            "और रविवार को नहीं खुलता।",
        ),
        "tyre": (
            "साइकिल का पंक्चर ठीक करने के लिए क्या चाहिए?",
            "पहिया निकालें, टायर को रिम से उतारें और ट्यूब का छेद पानी में ढूँढें। जगह को रगड़ें, गोंद लगाएँ, तीन मिनट रुकें और पैच दबा दें।",
        ),
    },
    "th": {
        "tides": (
            "ทำไมน้ำทะเลจึงขึ้นลงวันละสองครั้ง",
            "ดวงจันทร์ดึงดูดมหาสมุทร น้ำจึงนูนขึ้นทั้งด้านที่หันเข้าหาดวงจันทร์และด้านตรงข้าม เมื่อโลกหมุน ชายฝั่งส่วนใหญ่จะผ่านส่วนที่นูนทั้งสองแห่ง",
        ),
        "tea": (
            "ควรแช่ชาเขียวนานเท่าไร",
            "ชาเขียวจะขมในน้ำเดือด ปล่อยให้น้ำเย็นลงเหลือ 75 °C แล้วนำใบชาออกหลังจากสองนาที",
        ),
        "library": (
            "ห้องสมุดเปิดวันอาทิตย์หรือไม่",
            "ห้องสมุดประจำเมืองเปิดวันจันทร์ถึงวันศุกร์ เวลา 9.00 ถึง 18.30 น. วันเสาร์ปิดตอนเที่ยง ส่วนวันอาทิตย์ปิดทั้งวัน",
        ),
        "tyre": (
            "ต้องใช้อะไรบ้างในการปะยางจักรยานที่รั่ว",
            "ถอดล้อออก งัดยางออกจากขอบล้อ แล้วหารูรั่วของยางในใต้น้ำ ขัดบริเวณนั้นให้หยาบ ทากาว รอสามนาที แล้วกดแผ่นปะให้แน่น",
        ),
    },
    "zh": {
        "tides": (
            "为什么海水每天涨落两次？",
            "月球吸引海洋，海水在朝向月球的一面和背向月球的一面都会隆起。地球自转时，大多数海岸都会经过这两处隆起。",
        ),
        "tea": (
            "绿茶应该泡多久？",
            "用沸水泡绿茶会发苦。把水晾到75摄氏度，两分钟后取出茶叶。",
        ),
        "library": (
            "图书馆星期天开门吗？",
            "市图书馆周一至周五9:00到18:30开放；周六中午关门，周日不开放。",
        ),
        "tyre": (
            "修补漏气的自行车轮胎需要什么？",
            "卸下车轮，把外胎从轮圈上撬开，在水里找出内胎的破洞。把那里打毛，涂上胶水，等三分钟，再把补片压紧。",
        ),
    },
}


def question(language: str, theme: str) -> str:
    """The question of a theme in a language."""
    return SENTENCES[language][theme][0]


def passage(language: str, theme: str) -> str:
    """The passage that answers a theme's question, in a language."""
    return SENTENCES[language][theme][1]
